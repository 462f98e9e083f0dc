# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Metadata types: fields laid out in the slot of a frame.

A metadata type is a class with annotations, like a dataclass.  Its layout is
made when the class is made: fields in the order of their definition, those of
the bases first, each at its natural alignment, with the links of a linked list
ahead of them all where the class mixes in `Link`.

An instance is one of two things.  A *value* has storage of its own: it is what
a user constructs and what an allocation copies into the slot.  A *view* shows
the slot of a frame: read-only while the frame can be shared, mutable while it
is unique.  A view stops working, with an exception, when the handle it came
from is dropped or moved.

Arenas know a type by a number.  The registry in the arena records what must be
equal wherever the arena is used: the name, the size and a fingerprint of the
layout.  Two classes with the same name and layout are the same type; of such
classes views are made of the one that the arena has met last.

In a shared arena other processes register types, too.  A process that has defined a
class of that name and layout uses it without being told; otherwise the type shows as
an `OpaqueMeta`, a class without fields.  Nothing is ever imported on account of an
arena.
"""

import inspect
import typing
import weakref
from _thread import RLock   # which is no Python code: a child calls it within fork()

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from pageframe._core.arena cimport (
    PF_ARENA, PF_LINKED, PF_ON_DROP, PF_OPAQUE, PF_REGISTERED, PF_TYPE_NAME,
    PF_UNTYPED, Arena, as_int, pf_bytes_at, pf_fnv1a, pf_frame_of, pf_type)
from pageframe._core import backing
from pageframe._core.errors import (
    ArenaDamagedError, FrameGoneError, FrameTypeError, MovedError)
from pageframe._core.field_type cimport (
    FieldType, add_word, cas_word, copy_field, from_word, load_field, store_field, store_word,
    to_word)
from pageframe._core import field_type
from pageframe._core.io cimport VmReader, reader_over
from pageframe._core.ledger cimport PF_S_type_count, PF_S_type_entry, PF_S_type_flags, pf_step
from pageframe._core.slot cimport (
    PF_SLOT_HEADER, PF_SLOT_MAX, pf_cas_release_u32, pf_load_acquire_u32, pf_load_relaxed_u32,
    pf_load_relaxed_u64, pf_slot, pf_store_release_u32)

cdef extern from "string.h":
    size_t strnlen(const char *, size_t)

cdef extern from "Python.h":
    void PyErr_WriteUnraisable(object)
    void PyErr_SetObject(object, object)
    int PyObject_GenericSetAttr(object, object, object) except -1
    bint PyObject_TypeCheck(object, PyTypeObject *)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    void PyObject_Free(void *)
    int PyObject_CallFinalizerFromDealloc(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)
    PyTypeObject *Py_TYPE(PyObject *)
    void *PyObject_Malloc(size_t)
    PyObject *PyObject_Init(void *, PyTypeObject *)
    PyObject *PyErr_NoMemory()
    unsigned long Py_TPFLAGS_HAVE_GC
    ctypedef struct PyTypeObject:
        unsigned long tp_flags
        void (*tp_free)(void *) noexcept
        void (*tp_dealloc)(PyObject *) noexcept
        PyObject *(*tp_alloc)(PyTypeObject *, Py_ssize_t) noexcept
        Py_ssize_t tp_basicsize
        void *tp_finalize
        object (*tp_new)(PyTypeObject *, object, void *)

cdef enum:
    LINK_SIZE = 8   # two frame numbers of 32 bits, which linked lists write


cdef inline object keeper(MetaView view):
    """What ends a view in a critical section of its own; to look at the fields takes the same one."""
    return view if view.owner is None else view.owner


cdef inline int check_view(MetaView view) except -1:
    """Refuse a view that has ended; to be called within the critical section of its keeper."""
    if view.own != NULL:
        return 0
    if view.slot == NULL or (view.guard != NULL and view.guard[0] != view.slot):
        return raise_moved_view(view)
    if (not (view.arena.open or view.arena.leaving)
            or pf_load_relaxed_u64(&view.slot.generation) != view.generation
            or pf_load_relaxed_u32(&view.slot.list_id) != view.list_id
            or (view.list_alive != NULL and view.list_alive[0] != view.list_id)
            or (view.writable and view.epoch != view.arena.epoch)):
        return raise_view_gone(view)
    return 0


cdef int raise_moved_view(MetaView view) except -1:
    raise MovedError(
        f"this {type(view).__name__} belonged to a handle that was dropped or moved, or was never "
        "initialised")


cdef int raise_view_gone(MetaView view) except -1:
    raise FrameGoneError(f"the frame that this {type(view).__name__} described is gone")


@cython.final
cdef class Field:
    """The descriptor of a field in its class."""
    cdef readonly str name
    cdef readonly FieldType type
    cdef readonly Py_ssize_t offset
    cdef readonly object default
    cdef object owner           # the class whose layout this is of

    def __init__(self, *args, **kwargs):
        raise TypeError("fields are made by annotating a metadata class")

    cdef inline unsigned char *address(self, MetaView view) except NULL:
        """Where the field lies in an instance of its class."""
        check_view(view)
        # Where Python lets the class of an instance be changed, its storage stays as it was.
        if self.offset < view.first or self.offset + self.type.size > view.room:
            raise FrameTypeError(f"this was not made as a {type(view).__name__}: no field {self.name}")
        return view.data + self.offset

    cdef Field field_in(self, MetaView view):
        """This field as it lies in an instance, whose class may be derived from the field's."""
        cdef Field field
        if self.owner is type(view):
            return self
        for field in layout_of(type(view)).fields:
            if field.name == self.name and issubclass(type(view), self.owner):
                return field
        raise FrameTypeError(f"{type(view).__name__} has no field {self.name}")

    def __get__(self, obj, owner):
        if obj is None:
            return self
        cdef MetaView view = <MetaView?>obj
        cdef Field field = self if self.owner is type(view) else self.field_in(view)
        cdef Atomic atomic
        if field.type.atomic:
            atomic = Atomic.__new__(Atomic)
            atomic.view = view
            atomic.field = field
            return atomic
        with cython.critical_section(keeper(view)):
            return load_field(field.type, field.address(view))

    def __set__(self, obj, value):
        cdef MetaView view = <MetaView?>obj
        cdef Field field = self.field_in(view)
        cdef unsigned char converted[PF_SLOT_MAX]
        with cython.critical_section(keeper(view)):
            check_view(view)
        if not view.writable:
            raise AttributeError(
                f"{field.name} is read-only: the frame is shared"
                + (f"; use {field.name}.store()" if field.type.atomic else ""))
        # To convert may run the user's code, which may end the view.
        store_field(field.type, converted, value)
        with cython.critical_section(keeper(view)):
            copy_field(field.type, field.address(view), converted)

    def __delete__(self, obj):
        raise AttributeError(f"{self.name} can't be deleted")

    def __repr__(self):
        return f"<field {self.name}: {self.type} at offset {self.offset}>"


cdef Field make_field(object owner, str name, FieldType type, Py_ssize_t offset, default):
    cdef Field field = Field.__new__(Field)
    field.owner = owner
    field.name = name
    field.type = type
    field.offset = offset
    field.default = default
    return field


@cython.final
cdef class Atomic:
    """An atomic field of one frame; every operation is sequentially consistent."""
    cdef MetaView view
    cdef Field field

    def __init__(self, *args, **kwargs):
        raise TypeError("atomic fields are reached through the metadata of a frame")

    cdef object keeper(self):
        if self.view is None or self.field is None:
            raise MovedError("this atomic belongs to no field")
        return keeper(self.view)

    cdef unsigned char *address(self) except NULL:
        """Where the field lies; to be called, and used, within the critical section of the keeper."""
        return self.field.address(self.view)

    def load(self):
        """Return the value."""
        with cython.critical_section(self.keeper()):
            return load_field(self.field.type, self.address())

    def store(self, value):
        """Replace the value. Raises `OverflowError` if it does not fit."""
        cdef uint64_t word
        cdef object keeper = self.keeper()
        with cython.critical_section(keeper):
            self.address()
        to_word(self.field.type, value, &word)
        with cython.critical_section(keeper):
            store_word(self.address(), self.field.type.size, word)

    def fetch_add(self, value):
        """Add, wrapping round at the field's size; return the value before."""
        cdef uint64_t word = as_int(value) & 0xFFFFFFFFFFFFFFFF
        cdef FieldType t
        with cython.critical_section(self.keeper()):
            t = self.field.type
            return from_word(t, add_word(self.address(), t.size, word))

    def compare_exchange(self, expected, desired):
        """Replace the value if it is the expected one; return whether it was."""
        cdef FieldType t
        cdef uint64_t old, new
        cdef object keeper = self.keeper()
        with cython.critical_section(keeper):
            self.address()
        t = self.field.type
        to_word(t, expected, &old)
        to_word(t, desired, &new)
        with cython.critical_section(keeper):
            return cas_word(self.address(), t.size, old, new)

    def __int__(self):
        return self.load()

    def __index__(self):
        return self.load()

    def __eq__(self, other):
        if isinstance(other, Atomic):
            return self.load() == other.load()
        return self.load() == other if isinstance(other, int) else NotImplemented

    __hash__ = None

    def __repr__(self):
        return repr(self.load())


@cython.no_gc
cdef class MetaView:
    def __dealloc__(self):
        free(self.own)

    def __setattr__(self, name, value):
        if name == "__class__":
            raise TypeError(f"the class of a {type(self).__name__} is fixed")
        PyObject_GenericSetAttr(self, name, value)

    def __init__(self, **fields):
        cdef MetaLayout layout = layout_of(type(self))
        cdef Field field
        with cython.critical_section(self):
            if self.slot != NULL or self.own != NULL:
                raise TypeError(f"this {type(self).__name__} is initialised already")
            self.own = <unsigned char *>calloc(1, max(layout.size, 1))
            if self.own == NULL:
                raise MemoryError()
        self.data = self.own
        self.first = LINK_SIZE if layout.flags & PF_LINKED else 0
        self.room = layout.size
        self.writable = True
        for field in layout.fields:
            value = fields.pop(field.name, field.default)
            if value is not None:
                store_field(field.type, field.address(self), value)
        if fields:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(map(repr, fields))}")

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return field_values(self) == field_values(other)

    __hash__ = None

    def __repr__(self):
        fields = ", ".join(f"{name}={value!r}" for name, value in field_values(self).items())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self):
        return _rebuild, (type(self), field_values(self))

    def __copy__(self):
        return own_copy(self)

    def __deepcopy__(self, memo):
        return own_copy(self)


def _rebuild(cls, fields):
    return cls(**fields)


cdef dict field_values(MetaView view):
    cdef Field field
    values = {}
    with cython.critical_section(keeper(view)):
        check_view(view)
        for field in layout_of(type(view)).fields:
            values[field.name] = load_field(field.type, field.address(view))
    return values


@cython.final
cdef class MetaLayout:
    """Where the fields of a class lie, and what the registry records of it."""
    cdef readonly Py_ssize_t size
    cdef readonly tuple fields
    cdef readonly str name
    cdef readonly uint64_t fingerprint
    cdef uint32_t flags

    def __init__(self, *args, **kwargs):
        raise TypeError("a layout is made with its metadata class")

    cdef int make(self, cls, dict declared) except -1:
        cdef Field field
        cdef bint linked = marked(cls, "__linked__")
        cdef Py_ssize_t offset = LINK_SIZE if linked else 0
        fields = []
        for name, (field_type, default) in declared.items():
            alignment = field_type.alignment
            offset = -(-offset // alignment) * alignment
            fields.append(make_field(cls, name, field_type, offset, default))
            offset += field_type.size
        self.size = -(-offset // 8) * 8
        self.fields = tuple(fields)
        # The main module of a spawned process has another name for the same thing.
        module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
        self.name = f"{module}.{cls.__qualname__}"
        if self.size > PF_SLOT_MAX - PF_SLOT_HEADER:
            raise FrameTypeError(
                f"{self.name} takes {self.size} bytes, the largest slot has "
                f"{PF_SLOT_MAX - PF_SLOT_HEADER}")
        self.flags = (
            (PF_UNTYPED if marked(cls, "__untyped__") else 0)
            | (PF_LINKED if linked else 0)
            | (PF_ON_DROP if cls.on_drop is not MetaBase.on_drop else 0)
            | (PF_ARENA if cls.__dict__.get("__arena__") is True else 0))
        described = repr([(field.name, repr(field.type), field.offset) for field in fields])
        data = f"{described} {self.flags & PF_REGISTERED}".encode()
        self.fingerprint = pf_fnv1a(<const char *>data, len(data))
        return 0


cdef MetaLayout make_layout(cls, dict declared):
    cdef MetaLayout layout = MetaLayout.__new__(MetaLayout)
    layout.make(cls, declared)
    return layout


cdef void forget_lock() noexcept:
    """In a forked child: nobody there registers anything."""
    global registering
    registering = RLock()


cdef tuple taken_names = ()
registering = RLock()
cdef dict defined_types = {}    # (name, fingerprint) -> weak reference to the class defined last


class MetaBase:
    """What `FrameMeta` and its metaclass agree on before either exists."""

    __slots__ = ()

    def on_drop(self, reader):
        """Run when the last holder of the frame goes.

        Override it in a metadata type. What it raises goes to `sys.unraisablehook`
        and the frame is released all the same. While the interpreter exits it may
        not run.

        Parameters
        ----------
        reader : VmReader
            Over the bytes of the frame, typed or not; works only during the call.
        """


cdef bint marked(cls, str mark) except -1:
    """Whether a class or one of its bases sets a mark."""
    return any([base.__dict__.get(mark) is True for base in cls.__mro__])


cdef MetaLayout layout_of(object cls):
    """The layout of a class of its own, not of one that could not be made whole."""
    layout = cls.__dict__.get("__layout__")
    if not isinstance(layout, MetaLayout):
        raise FrameTypeError(f"{cls.__name__} has no layout: the class could not be made")
    return layout


cdef dict declared_fields(cls):
    """The fields that a class itself declares: name -> (type, default)."""
    declared = {}
    for name, annotation in inspect.get_annotations(cls, eval_str=True).items():
        if typing.get_origin(annotation) is typing.ClassVar or annotation is typing.ClassVar:
            continue
        if typing.get_origin(annotation) is typing.Annotated and typing.get_args(annotation)[0] is bytes:
            annotation = field_type.bytes_[typing.get_args(annotation)[1]]
        if not isinstance(annotation, FieldType) or (<FieldType>annotation).size == 0:
            raise FrameTypeError(
                f"{cls.__name__}.{name}: {annotation!r} is no field type"
                + ("; say how many bytes, as in bytes_[16]" if annotation is field_type.bytes_ else ""))
        if any([name in base.__dict__ for base in taken_names]):
            raise FrameTypeError(f"{cls.__name__}.{name}: the name is taken by FrameMeta")
        default = cls.__dict__.get(name)
        declared[name] = (annotation, None if isinstance(default, Field) else default)
    return declared


# Instances of metadata classes are views for the most part, made for one look at a
# field.  They are kept out of the cycle collector, and their memory on a free list.

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define SPARE_MAX 0     /* the interpreter lock guards the free list */
    static void *spare[1];
    #else
    #define SPARE_MAX 64
    static void *spare[SPARE_MAX];
    #endif
    static int spares;
    """
    enum:
        SPARE_MAX
    void *spare[]
    int spares


cdef PyObject *alloc_instance(PyTypeObject *t, Py_ssize_t items) noexcept:
    """Make an instance of a metadata class, all zero."""
    global spares
    cdef void *block
    if spares > 0:
        spares -= 1
        block = spare[spares]
    else:
        block = PyObject_Malloc(t.tp_basicsize)
        if block == NULL:
            return PyErr_NoMemory()
    memset(block, 0, t.tp_basicsize)
    return PyObject_Init(block, t)


cdef void dealloc_instance(PyObject *o) noexcept:
    """Take down an instance, which has neither a dict nor weak references."""
    global spares
    cdef PyTypeObject *t = Py_TYPE(o)
    if t.tp_finalize != NULL and PyObject_CallFinalizerFromDealloc(o) < 0:
        return
    if (<MetaView>o).own != NULL:
        free((<MetaView>o).own)
    Py_XDECREF(<PyObject *>(<MetaView>o).owner)
    if t.tp_dealloc != dealloc_instance:
        t.tp_free(o)    # of a class that was refused, but is there all the same
    elif spares < SPARE_MAX:
        spare[spares] = o
        spares += 1
    else:
        PyObject_Free(o)
    Py_DECREF(<PyObject *>t)


cdef void set_up_instances(object cls) noexcept:
    """Have instances of a new class made and taken down as above.

    The cycle collector need not visit them: they refer to a handle at most, and a
    handle to its arena, so they are in no cycle.
    """
    cdef PyTypeObject *t = <PyTypeObject *>cls
    t.tp_flags &= ~Py_TPFLAGS_HAVE_GC
    t.tp_free = PyObject_Free
    t.tp_alloc = alloc_instance
    t.tp_dealloc = dealloc_instance


class FrameMetaType(type):
    """Metaclass of metadata types: makes the layout when the class is made."""

    def __new__(mcls, name, bases, namespace, **kwargs):
        namespace.setdefault("__slots__", ())
        if namespace["__slots__"] != ():
            raise FrameTypeError(f"{name}: metadata has no slots of its own; annotate fields instead")
        cls = super().__new__(mcls, name, bases, namespace, **kwargs)
        if (cls.__dictoffset__ or cls.__weakrefoffset__
                or (<PyTypeObject *>cls).tp_basicsize != (<PyTypeObject *>MetaView).tp_basicsize):
            raise FrameTypeError(
                f"{name}: a class that metadata mixes in must have __slots__ = (), so that instances have "
                "neither a dict nor weak references nor attributes of their own")
        type.__setattr__(cls, "__declared__", declared_fields(cls))
        declared = {}
        for base in reversed(cls.__mro__):
            declared.update(base.__dict__.get("__declared__", {}))
        layout = make_layout(cls, declared)
        probe = bytearray(layout.size)
        for field in layout.fields:
            check_default(cls, field, probe)
            type.__setattr__(cls, field.name, field)
        type.__setattr__(cls, "__layout__", layout)
        set_up_instances(cls)
        if not marked(cls, "__opaque__"):
            defined_types[layout.name, layout.fingerprint] = weakref.ref(cls)
        return cls

    def __setattr__(cls, name, value):
        if name in ("__layout__", "__declared__", "on_drop") or isinstance(cls.__dict__.get(name), Field):
            raise AttributeError(f"{name} of the metadata type {cls.__name__} is fixed")
        super().__setattr__(name, value)

    def __delattr__(cls, name):
        if name in ("__layout__", "__declared__", "on_drop") or isinstance(cls.__dict__.get(name), Field):
            raise AttributeError(f"{name} of the metadata type {cls.__name__} is fixed")
        super().__delattr__(name)


cdef check_default(cls, Field field, bytearray probe):
    """Refuse a default that the field can't hold when the class is made."""
    if field.default is not None:
        try:
            store_field(field.type, <unsigned char *>probe + field.offset, field.default)
        except (TypeError, ValueError, OverflowError) as error:
            raise FrameTypeError(f"{cls.__name__}.{field.name}: bad default: {error}") from None


class FrameMeta(MetaBase, MetaView, metaclass=FrameMetaType):
    """Base of metadata types.

    Fields are annotations with a field type, a default being optional::

        class PageMeta(UntypedFrameMeta):
            inode: u64
            dirty: bool_ = True
            tag: bytes_[16]
            hits: atomic_u32

    Field types are ``u8`` … ``u64``, ``i8`` … ``i64``, ``f32``, ``f64``, ``bool_``,
    ``bytes_[n]`` (also spelled ``Annotated[bytes, n]``, which type checkers
    understand; shorter values are padded with zeros) and ``atomic_u8`` …
    ``atomic_i64``. A field without a default starts as zero. A type is fixed once
    made; subclasses add fields. An arena has room for 58 types.

    Parameters
    ----------
    **fields
        Values by name.

    Raises
    ------
    FrameTypeError
        When the class is made, if it could fit no slot, or a field has no field
        type, a bad default or a name that is taken.
    """

    __module__ = "pageframe"


class UntypedFrameMeta(FrameMeta):
    """Base of metadata types whose frames are untyped: raw bytes that anyone may read and write."""

    __module__ = "pageframe"
    __untyped__ = True


class Link(FrameMeta):
    """Mixed into a metadata type, lets its frames be in a `LinkedList`.

    Takes the first 8 bytes of the slot's storage.
    """

    __module__ = "pageframe"
    __linked__ = True


class OpaqueMeta(FrameMeta):
    """Base of what stands for a type that this process has not defined: no fields, just its name."""

    __module__ = "pageframe"
    __opaque__ = True


class TicketPageMeta(FrameMeta):
    """Carried by frames that list the frames of a message in transit."""

    __module__ = "pageframe"


class PageTableMeta(FrameMeta):
    """Carried by frames that are nodes of a page table: 512 entries of 8 bytes.

    Attributes
    ----------
    level
        1 to 4, which is that of the root.
    entries
        How many are in use.
    """

    __module__ = "pageframe"
    __annotations__ = {"level": field_type.u32, "entries": field_type.u32}


class MetaPageMeta(FrameMeta):
    """Carried by the frames that hold the arena's own tables."""

    __module__ = "pageframe"
    __arena__ = True


class ReservedMemoryMeta(FrameMeta):
    """Carried by the frames of reserved regions."""

    __module__ = "pageframe"
    __arena__ = True


class UnusableMemoryMeta(FrameMeta):
    """Carried by the frames of bad regions."""

    __module__ = "pageframe"
    __arena__ = True


taken_names = FrameMeta.__mro__    # whose attributes no field may hide


cdef uint32_t type_id_of(Arena mem, object cls) except 0:
    """The number of a type in an arena; registers the type at its first use."""
    type_id = mem.type_ids.get(<size_t><void *>cls)
    if type_id is None:
        if not is_meta_type(cls):
            raise FrameTypeError(f"{cls!r} is no metadata type: derive it from FrameMeta")
        mem.check_open()
        type_id = register_type(mem, cls)
    return type_id


cdef bint is_meta_type(object cls) except -1:
    """Whether this really is one, whatever it says its class were."""
    return isinstance(cls, type) and issubclass(type(cls), FrameMetaType)


cdef uint32_t find_type(Arena mem, object cls) except? 0:
    """The number of a type in an arena; 0 if no frame has ever been of the type."""
    if not is_meta_type(cls):
        raise FrameTypeError(f"{cls!r} is no metadata type: derive it from FrameMeta")
    mem.check_shown()
    know_types(mem)
    check_size(mem, layout_of(cls))
    return mem.type_ids.get(<size_t><void *>cls, 0)


cdef int check_size(Arena mem, MetaLayout layout) except -1:
    """Refuse metadata for which the slots have no room."""
    cdef uint32_t room = (1u << mem.a.slot_shift) - PF_SLOT_HEADER
    if layout.size > room:
        raise FrameTypeError(
            f"{layout.name} takes {layout.size} bytes, a slot of this arena has {room}")
    return 0


cdef object register_type(Arena mem, object cls):
    """Give a class its number in an arena."""
    cdef MetaLayout layout = layout_of(cls)
    cdef uint32_t type_id
    cdef bytes name = layout.name.encode()
    check_size(mem, layout)
    if len(name) >= PF_TYPE_NAME:
        raise FrameTypeError(f"{layout.name}: the name is longer than {PF_TYPE_NAME - 1} bytes")
    if marked(cls, "__opaque__"):
        raise FrameTypeError(f"{layout.name} is opaque: this process has not defined it")
    offset = <uint64_t>(<unsigned char *>mem.a.types - mem.a.base)
    with registering:       # among the threads of this process, which share the file's lock
        if not mem.span:
            type_id = register_layout(mem, cls, layout, name)
        else:
            if mem.fd < 0:
                mem.check_open()    # it was closed meanwhile
            mem.registering += 1
            try:
                if mem.registering == 1:
                    backing.lock(mem.fd, offset, True)
                type_id = register_layout(mem, cls, layout, name)
            finally:
                mem.registering -= 1
                if mem.registering == 0 and mem.fd >= 0:
                    backing.unlock(mem.fd, offset)
        set_class(mem, type_id, cls)
    return type_id


cdef uint32_t register_layout(Arena mem, object cls, MetaLayout layout, bytes name) except 0:
    """Find a type in the registry, or add it; of a shared arena under a lock."""
    cdef uint32_t count
    cdef uint32_t type_id
    cdef pf_type *entry
    know_types(mem)
    count = mem.a.types_known - 1
    for type_id in range(1, count + 1):
        entry = &mem.a.types[type_id - 1]
        # A class with the name of one of the arena's own has another fingerprint.
        if entry.fingerprint == layout.fingerprint and entry_name(entry) == name:
            pf_step(PF_S_type_flags)
            entry.flags |= layout.flags & PF_ON_DROP
            return type_id
    if count >= mem.a.type_capacity:
        raise FrameTypeError(
            f"no room to register {layout.name}: the arena has its {count} types already")
    entry = &mem.a.types[count]
    pf_step(PF_S_type_entry)
    entry.fingerprint = layout.fingerprint
    entry.size = layout.size
    entry.flags = layout.flags & (PF_REGISTERED | PF_ON_DROP)
    memcpy(entry.name, <const char *>name, len(name) + 1)
    pf_step(PF_S_type_count)
    # Release pairs with the acquire in know_types().
    pf_store_release_u32(&mem.a.header.type_count, count + 1)
    set_class(mem, count + 1, cls)
    pf_cas_release_u32(&mem.a.types_known, count + 1, count + 2)    # as in know_types()
    return count + 1


cdef bytes entry_name(const pf_type *entry):
    return entry.name[:strnlen(entry.name, PF_TYPE_NAME)]


cdef int set_class(Arena mem, uint32_t type_id, object cls) except -1:
    """Use a class for a type of an arena."""
    cdef MetaLayout layout = layout_of(cls)
    mem.classes[type_id] = cls
    mem.a.type_info[type_id].size = layout.size
    mem.a.type_info[type_id].flags = layout.flags
    mem.known_classes.append(cls)
    mem.type_ids[<size_t><void *>cls] = type_id
    return 0


cdef int know_types(Arena mem) except -1:
    """Take over the types that other processes have registered."""
    cdef uint32_t count = pf_load_acquire_u32(&mem.a.header.type_count)
    cdef uint32_t type_id
    cdef const pf_type *entry
    if count > mem.a.type_capacity:
        raise ArenaDamagedError(
            f"the arena says that it has {count} types, there is room for {mem.a.type_capacity}")
    while mem.a.types_known <= count:
        type_id = mem.a.types_known
        cls = defined_class(mem, type_id)
        opaque = opaque_class(mem, type_id) if cls is None else None
        if mem.a.types_known != type_id:
            continue        # to make a class may let others run, who have come further
        # Threads that come so far at once do the same, but for an opaque class of their own.
        if cls is not None:
            set_class(mem, type_id, cls)
        else:
            mem.classes[type_id] = opaque
            entry = &mem.a.types[type_id - 1]
            mem.a.type_info[type_id].size = min(entry.size, (1u << mem.a.slot_shift) - PF_SLOT_HEADER)
            mem.a.type_info[type_id].flags = (
                entry.flags & (PF_UNTYPED | PF_LINKED | PF_ON_DROP)) | PF_OPAQUE
        # Release pairs with the acquire in class_of(); never back behind one who has come further.
        pf_cas_release_u32(&mem.a.types_known, type_id, type_id + 1)
    return 0


cdef object type_name(Arena mem, uint32_t type_id):
    """What a type of metadata is called."""
    if type_id == 0 or type_id >= mem.a.types_known:
        return "none"
    return mem.classes[type_id].__layout__.name


cdef object defined_class(Arena mem, uint32_t type_id):
    """The class that this process has defined for a type, if there is one."""
    cdef const pf_type *entry = &mem.a.types[type_id - 1]
    found = defined_types.get((entry_name(entry).decode(errors="replace"), entry.fingerprint))
    cls = found and found()
    if cls is None or layout_of(cls).size != entry.size:
        return None
    return cls if layout_of(cls).size <= (1 << mem.a.slot_shift) - PF_SLOT_HEADER else None


cdef object opaque_class(Arena mem, uint32_t type_id):
    """Make a class without fields that stands for a type which this process has not defined."""
    cdef const pf_type *entry = &mem.a.types[type_id - 1]
    name = entry_name(entry).decode(errors="replace")
    bases = [OpaqueMeta]
    if entry.flags & PF_LINKED:
        bases.append(Link)
    if entry.flags & PF_UNTYPED:
        bases.append(UntypedFrameMeta)
    module, _, qualname = name.rpartition(".")
    return FrameMetaType(
        qualname or "Unnamed", tuple(bases), {"__module__": module, "__opaque__": True})


cdef tuple own_types = (
    UntypedFrameMeta, MetaPageMeta, ReservedMemoryMeta, UnusableMemoryMeta, TicketPageMeta, PageTableMeta)


cdef int register_own_types(Arena mem) except -1:
    """Begin the registry of a new arena."""
    mem.a.types_known = 1       # type ids begin there
    for cls in own_types:
        register_type(mem, cls)
    return 0


cdef int know_own_types(Arena mem) except -1:
    """Begin with the types that have the same numbers everywhere; no registry is believed about them."""
    for type_id, cls in enumerate(own_types, 1):
        set_class(mem, type_id, cls)
    mem.a.types_known = len(own_types) + 1
    return 0


cdef object class_of(Arena mem, const pf_slot *slot):
    """The class of the metadata of a frame that is, or was, in use."""
    return class_numbered(mem, pf_load_relaxed_u32(&slot.type_id))


cdef object class_numbered(Arena mem, uint32_t type_id):
    """The class of a type that a slot says it has; what a damaged one says is refused."""
    if type_id >= pf_load_acquire_u32(&mem.a.types_known):
        know_types(mem)
        if type_id >= mem.a.types_known:
            raise ArenaDamagedError(f"a slot has type {type_id}, the arena has {mem.a.types_known - 1}")
    if type_id == 0:
        mem.check_open()    # the slots of a closed arena are all zero
        raise ArenaDamagedError(f"a slot has type 0, the arena has {mem.a.types_known - 1}")
    if mem.a.type_info[type_id].flags & PF_OPAQUE:
        cls = defined_class(mem, type_id)
        if cls is not None:
            set_class(mem, type_id, cls)
    return mem.classes[type_id]


cdef MetaView meta_value(Arena mem, object meta, uint32_t *type_id):
    """Check metadata given by the user; None stands for untyped without fields."""
    if meta is None:
        type_id[0] = TYPE_UNTYPED
        return None
    if is_meta_type(meta):
        meta = meta()
    if not PyObject_TypeCheck(meta, <PyTypeObject *>MetaView):
        raise FrameTypeError(f"metadata must be a FrameMeta, not {type(meta).__name__}")
    type_id[0] = type_id_of(mem, type(meta))
    if mem.a.type_info[type_id[0]].flags & PF_ARENA or type_id[0] in (TYPE_TICKET_PAGE, TYPE_PAGE_TABLE):
        raise FrameTypeError(f"{type(meta).__name__} is for the arena's own frames")
    with cython.critical_section(keeper(meta)):
        check_view(<MetaView>meta)
    if (<MetaView>meta).room < <Py_ssize_t>mem.a.type_info[type_id[0]].size:
        raise FrameTypeError(f"this was not made as a {type(meta).__name__}")
    # A view may end before it is used, and has links that are not its copy's.
    return meta if (<MetaView>meta).own != NULL else own_copy(<MetaView>meta)


cdef MetaView own_copy(MetaView value):
    """The fields of a value or a view in a value of their own."""
    cdef MetaView copy
    cdef MetaLayout layout = layout_of(type(value))
    cdef Py_ssize_t links = LINK_SIZE if layout.flags & PF_LINKED else 0
    with cython.critical_section(keeper(value)):
        check_view(value)
    if value.room < layout.size:
        raise FrameTypeError(f"this was not made as a {type(value).__name__}")
    copy = new_instance(type(value))
    copy.own = <unsigned char *>calloc(1, max(layout.size, 1))
    if copy.own == NULL:
        raise MemoryError()
    copy.data = copy.own
    copy.first = links
    copy.room = layout.size
    copy.writable = True
    with cython.critical_section(keeper(value)):
        check_view(value)
        memcpy(copy.own + links, value.data + links, layout.size - links)
    return copy


cdef MetaView new_instance(object cls):
    """MetaView.__new__(cls), without looking up __new__ by name."""
    return <MetaView>(<PyTypeObject *>MetaView).tp_new(<PyTypeObject *>cls, (), NULL)


cdef MetaView view_slot(
        Arena mem, pf_slot *slot, object owner, pf_slot **guard, bint writable):
    """A view of a slot, valid while guard points to the slot; owner keeps guard alive."""
    # Read once: what was checked is used, though somebody writes over the slot meanwhile.
    cdef uint32_t type_id = pf_load_relaxed_u32(&slot.type_id)
    cdef object cls = class_numbered(mem, type_id)
    cdef MetaView view
    if cls is None:     # type 0: the arena was closed under us
        mem.check_open()
        raise FrameGoneError("the frame has no metadata")
    view = new_instance(cls)
    view.data = &slot.storage[0]
    view.first = LINK_SIZE if mem.a.type_info[type_id].flags & PF_LINKED else 0
    view.room = (1 << mem.a.slot_shift) - PF_SLOT_HEADER
    view.slot = slot
    view.arena = &mem.a
    view.guard = guard
    view.owner = owner
    view.generation = slot.generation
    view.list_id = slot.list_id
    view.writable = writable
    view.epoch = mem.a.epoch
    return view


cdef void run_on_drop(Arena mem, pf_slot *slot) noexcept:
    """Call the type's on_drop for a frame that is busy, ours, and about to end.

    An exception may be on its way, for instance when it is what releases the last
    view of the frame; it waits meanwhile.
    """
    cdef PyObject *waiting[3]
    PyErr_Fetch(&waiting[0], &waiting[1], &waiting[2])
    call_on_drop(mem, slot)
    PyErr_Restore(waiting[0], waiting[1], waiting[2])


cdef void call_on_drop(Arena mem, pf_slot *slot) noexcept:
    cdef MetaView view
    cdef VmReader reader
    on_drop = None
    try:
        view = view_slot(mem, slot, None, NULL, True)
        view.guard = &view.slot
        on_drop = type(view).on_drop
        reader = reader_over(pf_bytes_at(&mem.a, pf_frame_of(&mem.a, slot)), 1 << mem.a.page_shift)
        try:
            (<object>view).on_drop(reader)
        finally:    # the user may have kept them, and use them in other threads
            with cython.critical_section(view):
                view.slot = NULL
            with cython.critical_section(reader):
                reader.close()
    except BaseException as error:
        # There is nobody to raise it to: the frame goes all the same.
        PyErr_SetObject(type(error), error)
        PyErr_WriteUnraisable(on_drop)


cdef object slot_dtype(Arena mem, object cls):
    """The NumPy dtype of a whole slot that shows the fields of a class."""
    cdef Field field
    cdef MetaLayout layout = layout_of(cls)
    return {
        "names": [field.name for field in layout.fields],
        "formats": [field.type.format for field in layout.fields],
        "offsets": [PF_SLOT_HEADER + field.offset for field in layout.fields],
        "itemsize": 1 << mem.a.slot_shift,
    }
