"""One room per system; a system never imports another."""
