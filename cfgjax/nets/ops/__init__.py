"""Operations of the networks with custom implementations and gradients."""
