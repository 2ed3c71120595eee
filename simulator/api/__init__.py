"""What a researcher types: text or objects in, verbs on a deployment, tables out."""
