# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena

cdef object audit(Arena mem, bint repair)
cdef object audit_and_repair(Arena mem)
cdef list holders(Arena mem, uint64_t frame)
