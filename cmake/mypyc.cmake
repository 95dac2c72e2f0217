# The modules in mypyc_modules.txt, translated to C by mypyc (cmake/mypyc_generate.py) and built like any other extension.
# When mypyc is missing or objects to a module, it says why and that group is left interpreted.

option(NETSSMD_MYPYC "compile the pure hot modules with mypyc" ON)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS cmake/mypyc_modules.txt cmake/mypyc_generate.py)
if(NOT NETSSMD_MYPYC)
  return()
endif()

function(netssmd_mypyc_extension module)  # SOURCES ... INCLUDES ...
  cmake_parse_arguments(arg "" "" "SOURCES;INCLUDES" ${ARGN})
  string(REPLACE "." ";" parts "${module}")
  list(POP_BACK parts name)
  list(PREPEND parts ".")
  list(JOIN parts "/" folder)
  string(REPLACE "." "-" target "mypyc-${module}")
  python_add_library(${target} MODULE WITH_SOABI ${arg_SOURCES})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME "${name}" LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/mypyc-lib/${folder}")
  target_include_directories(${target} PRIVATE ${arg_INCLUDES})
  target_compile_options(${target} PRIVATE -O3 -fwrapv -fno-strict-aliasing -w)
  install(TARGETS ${target} LIBRARY DESTINATION "${folder}")
endfunction()

set(mypyc_dir "${CMAKE_BINARY_DIR}/mypyc")
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/mypyc_generate.py" "${CMAKE_SOURCE_DIR}" "${mypyc_dir}"
  RESULT_VARIABLE mypyc_result)
if(NOT mypyc_result EQUAL 0)
  message(WARNING "netssmd: mypyc did not translate the pure modules (see above): they will run interpreted, several times slower")
  return()
endif()
include("${mypyc_dir}/extensions.cmake")  # calls netssmd_mypyc_extension, sets mypyc_modules
list(APPEND NETSSMD_COMPILED_MODULES ${mypyc_modules})
foreach(module IN LISTS mypyc_modules)
  string(REPLACE "." "/" path "${module}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${path}.py")
endforeach()
