"""Operations of the networks with forms and gradients of their own."""
