"""What the model reads: records of what there is to tell, templates in Markdown, and `render` between them."""
