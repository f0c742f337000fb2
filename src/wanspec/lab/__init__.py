"""THE LAB, in which the product is studied: simulated, measured, compared, planned. The product never imports it."""
