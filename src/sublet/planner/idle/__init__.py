"""What sat idle, in hindsight: `sublet audit`."""
