# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Qfmt(KaitaiStruct):
    """The bytes of a `.qfmt` file, version 1.0. `qfmt.md` beside this file is normative: it adds the rules that a reader checks
    (digests, order, padding) and the zstd and byte-shuffle filters of chunks, which this description leaves out.
    
    .. seealso::
       spec/qfmt.md
    """

    class Encoding(IntEnum):
        raw = 0
        zstd = 1
    def __init__(self, _io, _parent=None, _root=None):
        super(Qfmt, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.header = Qfmt.Header(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.header._fetch_instances()
        _ = self.chunk_table
        if hasattr(self, '_m_chunk_table'):
            pass
            for i in range(len(self._m_chunk_table)):
                pass
                self._m_chunk_table[i]._fetch_instances()


        _ = self.index
        if hasattr(self, '_m_index'):
            pass
            self._m_index._fetch_instances()


    class ChunkRecord(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.ChunkRecord, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.stored_bytes = self._io.read_u4le()
            self.encoding = KaitaiStream.resolve_enum(Qfmt.Encoding, self._io.read_u1())
            self.reserved = self._io.read_bytes(3)
            if not self.reserved == b"\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00", self.reserved, self._io, u"/types/chunk_record/seq/2")
            self.digest = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass


    class Column(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Column, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.begin = self._io.read_u2le()
            self.end = self._io.read_u2le()
            self.element_bytes = self._io.read_u1()
            self.encoding = KaitaiStream.resolve_enum(Qfmt.Encoding, self._io.read_u1())
            self.flags = self._io.read_u1()
            self.reserved = self._io.read_bytes(1)
            if not self.reserved == b"\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00", self.reserved, self._io, u"/types/column/seq/5")


        def _fetch_instances(self):
            pass

        @property
        def is_codes(self):
            if hasattr(self, '_m_is_codes'):
                return self._m_is_codes

            self._m_is_codes = self.flags & 1 != 0
            return getattr(self, '_m_is_codes', None)


    class Document(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Document, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.json_offset = self._io.read_u8le()
            self.n_bytes = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            _ = self.text
            if hasattr(self, '_m_text'):
                pass


        @property
        def text(self):
            if hasattr(self, '_m_text'):
                return self._m_text

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.json_offset + self.json_offset)
            self._m_text = (io.read_bytes(self.n_bytes)).decode(u"UTF-8")
            io.seek(_pos)
            return getattr(self, '_m_text', None)


    class Entry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.name_offset = self._io.read_u4le()
            self.name_bytes = self._io.read_u4le()
            self.form_number = self._io.read_u4le()
            self.first_plane = self._io.read_u4le()
            self.first_chunk = self._io.read_u4le()
            self.n_chunks = self._io.read_u4le()
            self.digest = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass
            _ = self.name
            if hasattr(self, '_m_name'):
                pass


        @property
        def form(self):
            if hasattr(self, '_m_form'):
                return self._m_form

            self._m_form = self._root.index.forms[self.form_number]
            return getattr(self, '_m_form', None)

        @property
        def name(self):
            if hasattr(self, '_m_name'):
                return self._m_name

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.text_offset + self.name_offset)
            self._m_name = (io.read_bytes(self.name_bytes)).decode(u"UTF-8")
            io.seek(_pos)
            return getattr(self, '_m_name', None)


    class Form(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Form, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.descriptor_number = self._io.read_u4le()
            self.first_dim = self._io.read_u4le()
            self.first_part = self._io.read_u4le()
            self.n_parts = self._io.read_u2le()
            self.dtype_number = self._io.read_u2le()
            self.rank = self._io.read_u1()
            self.reserved = self._io.read_bytes(7)
            if not self.reserved == b"\x00\x00\x00\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00\x00\x00\x00", self.reserved, self._io, u"/types/form/seq/6")


        def _fetch_instances(self):
            pass
            _ = self.parts
            if hasattr(self, '_m_parts'):
                pass
                for i in range(len(self._m_parts)):
                    pass
                    self._m_parts[i]._fetch_instances()


            _ = self.shape
            if hasattr(self, '_m_shape'):
                pass
                for i in range(len(self._m_shape)):
                    pass



        @property
        def descriptor(self):
            if hasattr(self, '_m_descriptor'):
                return self._m_descriptor

            self._m_descriptor = self._root.index.documents[self.descriptor_number].text
            return getattr(self, '_m_descriptor', None)

        @property
        def dtype(self):
            if hasattr(self, '_m_dtype'):
                return self._m_dtype

            self._m_dtype = self._root.index.symbols[self.dtype_number].text
            return getattr(self, '_m_dtype', None)

        @property
        def parts(self):
            if hasattr(self, '_m_parts'):
                return self._m_parts

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.parts_offset + 32 * self.first_part)
            self._m_parts = []
            for i in range(self.n_parts):
                self._m_parts.append(Qfmt.Part(io, self, self._root))

            io.seek(_pos)
            return getattr(self, '_m_parts', None)

        @property
        def shape(self):
            if hasattr(self, '_m_shape'):
                return self._m_shape

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.dims_offset + 8 * self.first_dim)
            self._m_shape = []
            for i in range(self.rank):
                self._m_shape.append(io.read_u8le())

            io.seek(_pos)
            return getattr(self, '_m_shape', None)


    class Header(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Header, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(8)
            if not self.magic == b"\x89\x51\x46\x4D\x54\x0D\x0A\x1A":
                raise kaitaistruct.ValidationNotEqualError(b"\x89\x51\x46\x4D\x54\x0D\x0A\x1A", self.magic, self._io, u"/types/header/seq/0")
            self.major = self._io.read_u2le()
            if not self.major == 1:
                raise kaitaistruct.ValidationNotEqualError(1, self.major, self._io, u"/types/header/seq/1")
            self.minor = self._io.read_u2le()
            self.alignment = self._io.read_u4le()
            self.required = self._io.read_u8le()
            self.optional = self._io.read_u8le()
            self.file_bytes = self._io.read_u8le()
            self.table_offset = self._io.read_u8le()
            self.index_offset = self._io.read_u8le()
            self.index_bytes = self._io.read_u8le()
            self.index_digest = self._io.read_bytes(32)
            self.header_digest = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass


    class Index(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Index, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.head = Qfmt.IndexHead(self._io, self, self._root)
            self.entries = []
            for i in range(self.head.n_tensors + self.head.n_assets):
                self.entries.append(Qfmt.Entry(self._io, self, self._root))

            self.planes = []
            for i in range(self.head.n_planes):
                self.planes.append(Qfmt.Plane(self._io, self, self._root))

            self.forms = []
            for i in range(self.head.n_forms):
                self.forms.append(Qfmt.Form(self._io, self, self._root))

            self.parts = []
            for i in range(self.head.n_parts):
                self.parts.append(Qfmt.Part(self._io, self, self._root))

            self.columns = []
            for i in range(self.head.n_columns):
                self.columns.append(Qfmt.Column(self._io, self, self._root))

            self.dims = []
            for i in range(self.head.n_dims):
                self.dims.append(self._io.read_u8le())

            self.symbols = []
            for i in range(self.head.n_symbols):
                self.symbols.append(Qfmt.Symbol(self._io, self, self._root))

            self.documents = []
            for i in range(self.head.n_documents):
                self.documents.append(Qfmt.Document(self._io, self, self._root))

            self.text = self._io.read_bytes(self.text_bytes)
            self.text_padding = self._io.read_bytes((8 - self.text_bytes % 8) % 8)
            self.json = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            self.head._fetch_instances()
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()

            for i in range(len(self.planes)):
                pass
                self.planes[i]._fetch_instances()

            for i in range(len(self.forms)):
                pass
                self.forms[i]._fetch_instances()

            for i in range(len(self.parts)):
                pass
                self.parts[i]._fetch_instances()

            for i in range(len(self.columns)):
                pass
                self.columns[i]._fetch_instances()

            for i in range(len(self.dims)):
                pass

            for i in range(len(self.symbols)):
                pass
                self.symbols[i]._fetch_instances()

            for i in range(len(self.documents)):
                pass
                self.documents[i]._fetch_instances()


        @property
        def columns_offset(self):
            if hasattr(self, '_m_columns_offset'):
                return self._m_columns_offset

            self._m_columns_offset = self.parts_offset + 32 * self.head.n_parts
            return getattr(self, '_m_columns_offset', None)

        @property
        def dims_offset(self):
            if hasattr(self, '_m_dims_offset'):
                return self._m_dims_offset

            self._m_dims_offset = self.columns_offset + 8 * self.head.n_columns
            return getattr(self, '_m_dims_offset', None)

        @property
        def json_offset(self):
            if hasattr(self, '_m_json_offset'):
                return self._m_json_offset

            self._m_json_offset = self.text_offset + ((self.text_bytes + 7) // 8) * 8
            return getattr(self, '_m_json_offset', None)

        @property
        def parts_offset(self):
            if hasattr(self, '_m_parts_offset'):
                return self._m_parts_offset

            self._m_parts_offset = ((80 + 56 * (self.head.n_tensors + self.head.n_assets)) + 16 * self.head.n_planes) + 24 * self.head.n_forms
            return getattr(self, '_m_parts_offset', None)

        @property
        def text_bytes(self):
            """symbols come last in text, and every form names one."""
            if hasattr(self, '_m_text_bytes'):
                return self._m_text_bytes

            self._m_text_bytes = (0 if self.head.n_symbols == 0 else self.symbols[self.head.n_symbols - 1].text_offset + self.symbols[self.head.n_symbols - 1].n_bytes)
            return getattr(self, '_m_text_bytes', None)

        @property
        def text_offset(self):
            if hasattr(self, '_m_text_offset'):
                return self._m_text_offset

            self._m_text_offset = ((self.dims_offset + 8 * self.head.n_dims) + 8 * self.head.n_symbols) + 16 * self.head.n_documents
            return getattr(self, '_m_text_offset', None)


    class IndexHead(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.IndexHead, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.n_tensors = self._io.read_u8le()
            self.n_assets = self._io.read_u8le()
            self.n_planes = self._io.read_u8le()
            self.n_chunks = self._io.read_u8le()
            self.n_forms = self._io.read_u8le()
            self.n_parts = self._io.read_u8le()
            self.n_columns = self._io.read_u8le()
            self.n_dims = self._io.read_u8le()
            self.n_symbols = self._io.read_u8le()
            self.n_documents = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Part(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Part, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.n_bytes = self._io.read_u8le()
            self.row_bytes = self._io.read_u8le()
            self.first_dim = self._io.read_u4le()
            self.first_column = self._io.read_u4le()
            self.role_number = self._io.read_u2le()
            self.dtype_number = self._io.read_u2le()
            self.block_bytes = self._io.read_u2le()
            self.rank = self._io.read_u1()
            self.n_columns = self._io.read_u1()


        def _fetch_instances(self):
            pass
            _ = self.columns
            if hasattr(self, '_m_columns'):
                pass
                for i in range(len(self._m_columns)):
                    pass
                    self._m_columns[i]._fetch_instances()


            _ = self.shape
            if hasattr(self, '_m_shape'):
                pass
                for i in range(len(self._m_shape)):
                    pass



        @property
        def columns(self):
            if hasattr(self, '_m_columns'):
                return self._m_columns

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.columns_offset + 8 * self.first_column)
            self._m_columns = []
            for i in range(self.n_columns):
                self._m_columns.append(Qfmt.Column(io, self, self._root))

            io.seek(_pos)
            return getattr(self, '_m_columns', None)

        @property
        def dtype(self):
            if hasattr(self, '_m_dtype'):
                return self._m_dtype

            self._m_dtype = self._root.index.symbols[self.dtype_number].text
            return getattr(self, '_m_dtype', None)

        @property
        def n_stripes(self):
            if hasattr(self, '_m_n_stripes'):
                return self._m_n_stripes

            self._m_n_stripes = ((self.n_bytes + self.stripe_bytes) - 1) // self.stripe_bytes
            return getattr(self, '_m_n_stripes', None)

        @property
        def role(self):
            if hasattr(self, '_m_role'):
                return self._m_role

            self._m_role = self._root.index.symbols[self.role_number].text
            return getattr(self, '_m_role', None)

        @property
        def shape(self):
            if hasattr(self, '_m_shape'):
                return self._m_shape

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.dims_offset + 8 * self.first_dim)
            self._m_shape = []
            for i in range(self.rank):
                self._m_shape.append(io.read_u8le())

            io.seek(_pos)
            return getattr(self, '_m_shape', None)

        @property
        def stripe_bytes(self):
            if hasattr(self, '_m_stripe_bytes'):
                return self._m_stripe_bytes

            self._m_stripe_bytes = (1048576 // self.block_bytes) * self.block_bytes
            return getattr(self, '_m_stripe_bytes', None)


    class Plane(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Plane, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.offset = self._io.read_u8le()
            self.stored_bytes = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            _ = self.body
            if hasattr(self, '_m_body'):
                pass


        @property
        def body(self):
            if hasattr(self, '_m_body'):
                return self._m_body

            io = self._root._io
            _pos = io.pos()
            io.seek(self.offset)
            self._m_body = io.read_bytes(self.stored_bytes)
            io.seek(_pos)
            return getattr(self, '_m_body', None)


    class Symbol(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qfmt.Symbol, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.text_offset = self._io.read_u4le()
            self.n_bytes = self._io.read_u4le()


        def _fetch_instances(self):
            pass
            _ = self.text
            if hasattr(self, '_m_text'):
                pass


        @property
        def text(self):
            if hasattr(self, '_m_text'):
                return self._m_text

            io = self._root.index._io
            _pos = io.pos()
            io.seek(self._root.index.text_offset + self.text_offset)
            self._m_text = (io.read_bytes(self.n_bytes)).decode(u"UTF-8")
            io.seek(_pos)
            return getattr(self, '_m_text', None)


    @property
    def chunk_table(self):
        if hasattr(self, '_m_chunk_table'):
            return self._m_chunk_table

        _pos = self._io.pos()
        self._io.seek(self.header.table_offset)
        self._m_chunk_table = []
        for i in range(self.index.head.n_chunks):
            self._m_chunk_table.append(Qfmt.ChunkRecord(self._io, self, self._root))

        self._io.seek(_pos)
        return getattr(self, '_m_chunk_table', None)

    @property
    def index(self):
        if hasattr(self, '_m_index'):
            return self._m_index

        _pos = self._io.pos()
        self._io.seek(self.header.index_offset)
        self._raw__m_index = self._io.read_bytes(self.header.index_bytes)
        _io__raw__m_index = KaitaiStream(BytesIO(self._raw__m_index))
        self._m_index = Qfmt.Index(_io__raw__m_index, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_index', None)


