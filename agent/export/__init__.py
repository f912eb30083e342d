"""The final extension: its parts, each written from the task's signature and the winners' plans."""
