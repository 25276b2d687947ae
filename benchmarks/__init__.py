"""Measurements that the README's figures come from; `fedofa bench` and `make bench` run them."""
