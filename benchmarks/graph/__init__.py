"""Compare MV-HetGNN with other networks, with compressed gradients, and with how it was released."""
