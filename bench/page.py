def page(report):
    return "<svg"
