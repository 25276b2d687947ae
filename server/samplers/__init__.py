"""Which subnets the clients train this round: one method a file, and a table of them."""
