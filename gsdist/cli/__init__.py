"""Offer gsdist on the command line."""
