"""Small operations between the products of a layer, each as one kernel."""
