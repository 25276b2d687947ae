"""What local training minimizes, one method a file."""
