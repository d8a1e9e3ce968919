"""What people run: the `ditc` command, and the modules that train and measure the demo."""
