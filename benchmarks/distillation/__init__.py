"""Compare distillation methods: accuracy of the same small student, taught in different ways."""
