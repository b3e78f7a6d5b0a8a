"""OpenAI's routes: their fields, answers and errors, over the native routes' generations."""
