# netssmd.packet._sum16: one function in plain C++, without nanobind, whose calls would cost more than the sum.

Python_add_library(_sum16 MODULE WITH_SOABI netssmd/packet/native/sum16.cpp)
target_compile_options(_sum16 PRIVATE -O3 -Wall -Wextra -Wno-missing-field-initializers)
install(TARGETS _sum16 LIBRARY DESTINATION netssmd/packet)
list(APPEND NETSSMD_COMPILED_MODULES netssmd.packet._sum16)
