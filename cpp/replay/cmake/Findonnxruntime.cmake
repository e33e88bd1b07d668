# Finds ONNX Runtime and defines the target onnxruntime::onnxruntime and the variable ONNXRUNTIME_FROM. In this order:
#   -DONNXRUNTIME_ROOT=DIR       an unpacked release: DIR/include, DIR/lib
#   -DONNXRUNTIME_PYTHON=PYTHON  the library in the wheel that this interpreter has (onnxruntime or onnxruntime-gpu)
#   a package configuration      Debian's libonnxruntime-dev, a release on CMAKE_PREFIX_PATH, onnxruntime_DIR
#   the wheel of python3         on the PATH
# A wheel has no headers: -DONNXRUNTIME_INCLUDE_DIR=DIR names them, else those of the system are taken. Headers older
# than the library are fine, newer ones are not.

set(_looked_for "")

function(_onnxruntime_library library include from)
  if(NOT TARGET onnxruntime::onnxruntime)
    add_library(onnxruntime::onnxruntime SHARED IMPORTED GLOBAL)
    set_target_properties(onnxruntime::onnxruntime PROPERTIES
      IMPORTED_LOCATION "${library}" INTERFACE_INCLUDE_DIRECTORIES "${include}")
  endif()
  set(ONNXRUNTIME_FROM "${from}" PARENT_SCOPE)
endfunction()

# The library in a wheel has a name that no linker and no loader looks for; links beside each other give it the usual
# ones. Its providers are looked for in the folder of the link.
function(_onnxruntime_wheel python)
  execute_process(COMMAND "${python}" -c "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])"
    OUTPUT_VARIABLE package ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  file(GLOB libraries "${package}/capi/libonnxruntime.so.*")
  if(NOT package OR NOT libraries)
    set(_looked_for "${_looked_for}\n  no package onnxruntime with capi/libonnxruntime.so.* in ${python}" PARENT_SCOPE)
    return()
  endif()
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  if(NOT ONNXRUNTIME_INCLUDE_DIR)
    set(_looked_for "${_looked_for}\n  no onnxruntime_cxx_api.h for the wheel of ${python}: set ONNXRUNTIME_INCLUDE_DIR" PARENT_SCOPE)
    return()
  endif()
  set(links "${CMAKE_BINARY_DIR}/onnxruntime")
  file(REMOVE_RECURSE "${links}")
  file(MAKE_DIRECTORY "${links}")
  file(GLOB parts "${package}/capi/libonnxruntime*.so*")
  foreach(part IN LISTS parts)
    get_filename_component(name "${part}" NAME)
    file(CREATE_LINK "${part}" "${links}/${name}" SYMBOLIC)
  endforeach()
  list(GET libraries 0 library)
  file(CREATE_LINK "${library}" "${links}/libonnxruntime.so.1" SYMBOLIC)
  file(CREATE_LINK libonnxruntime.so.1 "${links}/libonnxruntime.so" SYMBOLIC)
  _onnxruntime_library("${links}/libonnxruntime.so" "${ONNXRUNTIME_INCLUDE_DIR}" "the wheel in ${package}")
  set(ONNXRUNTIME_FROM "${ONNXRUNTIME_FROM}" PARENT_SCOPE)
endfunction()

if(ONNXRUNTIME_ROOT)
  find_path(_root_include onnxruntime_cxx_api.h PATHS "${ONNXRUNTIME_ROOT}" NO_DEFAULT_PATH NO_CACHE
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
  find_library(_root_library onnxruntime PATHS "${ONNXRUNTIME_ROOT}" NO_DEFAULT_PATH NO_CACHE PATH_SUFFIXES lib lib64)
  if(_root_include AND _root_library)
    _onnxruntime_library("${_root_library}" "${_root_include}" "ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT}")
  else()
    string(APPEND _looked_for "\n  no include/onnxruntime_cxx_api.h with lib/libonnxruntime.so in ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT}")
  endif()
elseif(ONNXRUNTIME_PYTHON)
  _onnxruntime_wheel("${ONNXRUNTIME_PYTHON}")
else()
  find_package(onnxruntime CONFIG QUIET)
  if(TARGET onnxruntime::onnxruntime)
    set(ONNXRUNTIME_FROM "${onnxruntime_CONFIG}")
  else()
    string(APPEND _looked_for "\n  no onnxruntimeConfig.cmake on CMAKE_PREFIX_PATH or in the system (onnxruntime_DIR)")
    find_program(_python3 python3 NO_CACHE)
    if(_python3)
      _onnxruntime_wheel("${_python3}")
    else()
      string(APPEND _looked_for "\n  no python3 on the PATH, to look for a wheel")
    endif()
  endif()
endif()

if(TARGET onnxruntime::onnxruntime)
  set(onnxruntime_FOUND TRUE)
else()
  set(onnxruntime_FOUND FALSE)
  if(onnxruntime_FIND_REQUIRED)
    message(FATAL_ERROR "ONNX Runtime was not found:${_looked_for}\n"
      "Set one of: -DONNXRUNTIME_ROOT=DIR (an unpacked release), -Donnxruntime_DIR=DIR (of onnxruntimeConfig.cmake), "
      "or -DONNXRUNTIME_PYTHON=PYTHON with -DONNXRUNTIME_INCLUDE_DIR=DIR (a wheel and headers).")
  endif()
endif()
