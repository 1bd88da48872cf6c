meta:
  id: qfmt
  title: Packed low-bit weights, .qfmt container
  file-extension: qfmt
  license: Apache-2.0
  endian: le
  encoding: UTF-8
doc: |
  The bytes of a `.qfmt` file, version 1.0. `qfmt.md` beside this file is normative: it adds the rules that a reader checks
  (digests, order, padding) and the zstd and byte-shuffle filters of chunks, which this description leaves out.
doc-ref: spec/qfmt.md
seq:
  - id: header
    type: header
instances:
  index:
    pos: header.index_offset
    size: header.index_bytes
    type: index
  chunk_table:
    pos: header.table_offset
    type: chunk_record
    repeat: expr
    repeat-expr: index.head.n_chunks
enums:
  encoding:
    0: raw
    1: zstd
types:
  header:
    seq:
      - id: magic
        contents: [0x89, 0x51, 0x46, 0x4d, 0x54, 0x0d, 0x0a, 0x1a]
      - id: major
        type: u2
        valid: 1
      - id: minor
        type: u2
      - id: alignment
        type: u4
      - id: required
        type: u8
        doc: bit 0 zstd, bit 1 columns
      - id: optional
        type: u8
      - id: file_bytes
        type: u8
      - id: table_offset
        type: u8
      - id: index_offset
        type: u8
      - id: index_bytes
        type: u8
      - id: index_digest
        size: 32
        doc: BLAKE3 of the index
      - id: header_digest
        size: 32
        doc: BLAKE3 of bytes 0 to 95
  chunk_record:
    seq:
      - id: stored_bytes
        type: u4
      - id: encoding
        type: u1
        enum: encoding
      - id: reserved
        contents: [0, 0, 0]
      - id: digest
        size: 32
        doc: BLAKE3 of the stored bytes
  index:
    seq:
      - id: head
        type: index_head
      - id: entries
        type: entry
        repeat: expr
        repeat-expr: head.n_tensors + head.n_assets
      - id: planes
        type: plane
        repeat: expr
        repeat-expr: head.n_planes
      - id: forms
        type: form
        repeat: expr
        repeat-expr: head.n_forms
      - id: parts
        type: part
        repeat: expr
        repeat-expr: head.n_parts
      - id: columns
        type: column
        repeat: expr
        repeat-expr: head.n_columns
      - id: dims
        type: u8
        repeat: expr
        repeat-expr: head.n_dims
      - id: symbols
        type: symbol
        repeat: expr
        repeat-expr: head.n_symbols
      - id: documents
        type: document
        repeat: expr
        repeat-expr: head.n_documents
      - id: text
        size: text_bytes
      - id: text_padding
        size: (8 - text_bytes % 8) % 8
      - id: json
        size-eos: true
    instances:
      parts_offset:
        value: 80 + 56 * (head.n_tensors + head.n_assets) + 16 * head.n_planes + 24 * head.n_forms
      columns_offset:
        value: parts_offset + 32 * head.n_parts
      dims_offset:
        value: columns_offset + 8 * head.n_columns
      text_offset:
        value: dims_offset + 8 * head.n_dims + 8 * head.n_symbols + 16 * head.n_documents
      text_bytes:
        value: 'head.n_symbols == 0 ? 0 : symbols[head.n_symbols - 1].text_offset + symbols[head.n_symbols - 1].n_bytes'
        doc: symbols come last in text, and every form names one
      json_offset:
        value: text_offset + (text_bytes + 7) / 8 * 8
  index_head:
    seq:
      - id: n_tensors
        type: u8
      - id: n_assets
        type: u8
      - id: n_planes
        type: u8
      - id: n_chunks
        type: u8
      - id: n_forms
        type: u8
      - id: n_parts
        type: u8
      - id: n_columns
        type: u8
      - id: n_dims
        type: u8
      - id: n_symbols
        type: u8
      - id: n_documents
        type: u8
  entry:
    seq:
      - id: name_offset
        type: u4
      - id: name_bytes
        type: u4
      - id: form_number
        type: u4
      - id: first_plane
        type: u4
      - id: first_chunk
        type: u4
      - id: n_chunks
        type: u4
      - id: digest
        size: 32
        doc: BLAKE3 of the chunk records of the entry
    instances:
      name:
        io: _root.index._io
        pos: _root.index.text_offset + name_offset
        size: name_bytes
        type: str
      form:
        value: _root.index.forms[form_number]
  plane:
    seq:
      - id: offset
        type: u8
      - id: stored_bytes
        type: u8
    instances:
      body:
        io: _root._io
        pos: offset
        size: stored_bytes
  form:
    seq:
      - id: descriptor_number
        type: u4
      - id: first_dim
        type: u4
      - id: first_part
        type: u4
      - id: n_parts
        type: u2
      - id: dtype_number
        type: u2
      - id: rank
        type: u1
      - id: reserved
        contents: [0, 0, 0, 0, 0, 0, 0]
    instances:
      descriptor:
        value: _root.index.documents[descriptor_number].text
      dtype:
        value: _root.index.symbols[dtype_number].text
      shape:
        io: _root.index._io
        pos: _root.index.dims_offset + 8 * first_dim
        type: u8
        repeat: expr
        repeat-expr: rank
      parts:
        io: _root.index._io
        pos: _root.index.parts_offset + 32 * first_part
        type: part
        repeat: expr
        repeat-expr: n_parts
  part:
    seq:
      - id: n_bytes
        type: u8
      - id: row_bytes
        type: u8
      - id: first_dim
        type: u4
      - id: first_column
        type: u4
      - id: role_number
        type: u2
      - id: dtype_number
        type: u2
      - id: block_bytes
        type: u2
      - id: rank
        type: u1
      - id: n_columns
        type: u1
    instances:
      role:
        value: _root.index.symbols[role_number].text
      dtype:
        value: _root.index.symbols[dtype_number].text
      shape:
        io: _root.index._io
        pos: _root.index.dims_offset + 8 * first_dim
        type: u8
        repeat: expr
        repeat-expr: rank
      columns:
        io: _root.index._io
        pos: _root.index.columns_offset + 8 * first_column
        type: column
        repeat: expr
        repeat-expr: n_columns
      stripe_bytes:
        value: 1048576 / block_bytes * block_bytes
      n_stripes:
        value: (n_bytes + stripe_bytes - 1) / stripe_bytes
  column:
    seq:
      - id: begin
        type: u2
      - id: end
        type: u2
      - id: element_bytes
        type: u1
      - id: encoding
        type: u1
        enum: encoding
      - id: flags
        type: u1
      - id: reserved
        contents: [0]
    instances:
      is_codes:
        value: (flags & 1) != 0
  symbol:
    seq:
      - id: text_offset
        type: u4
      - id: n_bytes
        type: u4
    instances:
      text:
        io: _root.index._io
        pos: _root.index.text_offset + text_offset
        size: n_bytes
        type: str
  document:
    seq:
      - id: json_offset
        type: u8
      - id: n_bytes
        type: u8
    instances:
      text:
        io: _root.index._io
        pos: _root.index.json_offset + json_offset
        size: n_bytes
        type: str
