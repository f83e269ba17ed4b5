"""What an unlearned model is measured by, and what the measurements say of each record."""
