# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cdef void with_spaces(int (*note)() except -1, void (*leave)() noexcept) noexcept
cdef list alive(object known)
