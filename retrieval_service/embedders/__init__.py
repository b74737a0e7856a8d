"""What turns prompts into vectors."""
