"""Published weights: which there are, downloading them, and making runs of them."""
