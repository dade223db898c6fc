"""How clients are served: one file a transport."""
