"""What a selection did to the target: figures over seeds, and the page that shows them."""
