"""Where packets go."""
