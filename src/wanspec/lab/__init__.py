"""THE LAB, in which the product is studied: simulated, measured, compared, planned. The product never imports it; docs/lab.md is its map."""
