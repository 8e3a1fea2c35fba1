"""Text-to-image models on a set of prompts in categories, and what people say of their pictures."""
