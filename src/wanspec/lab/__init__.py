"""THE LAB, in which the product is studied: simulated, measured, compared, planned. docs/lab.md maps it. The product never imports it."""
