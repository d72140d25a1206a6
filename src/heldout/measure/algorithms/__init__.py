"""How far an algorithm that was learned carries, and how short a program for it is."""
