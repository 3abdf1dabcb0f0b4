"""Which masked positions a sampling step fills:
one file a family of orders.
How tokens are drawn stands one folder up."""
