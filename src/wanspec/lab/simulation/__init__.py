"""THE OTHER DRIVER: the production machines in virtual time, over modelled links, devices and token streams."""
