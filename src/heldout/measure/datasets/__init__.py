"""How hard and how diverse is a data set or a task, before any model is judged on it?"""
