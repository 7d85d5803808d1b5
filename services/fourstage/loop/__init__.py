"""What BatchStream is made of: the same feed in somebody else's loop."""
