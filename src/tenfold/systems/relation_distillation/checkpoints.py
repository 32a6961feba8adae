"""placeholder"""
def load_teacher_weights(network, path): raise NotImplementedError
