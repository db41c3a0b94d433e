"""What other packages can test themselves with: the exam for recipes, and small worlds where everything is known."""
