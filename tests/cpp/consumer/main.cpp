#include <jumpout/model.h>

#include <iostream>
int main(int, char** argv) {
  const jumpout::Verification proof = jumpout::Model(argv[1]).verify();
  std::cout << proof.text;
  return proof ? 0 : 1;
}
