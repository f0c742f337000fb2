"""THE CORE: pure, no IO. What is drafted, when to be redundant, and who says what when."""
