"""Models of makemore as code that Hugging Face's transformers loads with ``trust_remote_code``."""
