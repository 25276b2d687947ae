"""`fedofa report`: what a run did and came to, its lineage, and whether best practice was kept."""
