"""Search: a method proposes architectures, a loop has them evaluated, a value comes out."""
