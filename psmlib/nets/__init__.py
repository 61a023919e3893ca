"""Networks, and banks of them."""
