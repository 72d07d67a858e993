"""Exports: what each trainer reads, one small file a consumer; `factory.publish.exporting` writes them."""
