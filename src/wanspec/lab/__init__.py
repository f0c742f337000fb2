"""THE LAB, in which the product is studied: simulated, measured, compared, planned. docs/lab.md is its map. The product never imports it."""
