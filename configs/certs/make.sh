#!/bin/sh
# Makes the certificates of the examples anew. They are for trying things out on one machine: the keys are public.
set -eu
cd "$(dirname "$0")"
days=36500
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }

# leaf NAME COMMON-NAME SUBJECT-ALT-NAMES USAGE
leaf() {
  key "$1"
  openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$4" "$3" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm -f "$1.csr" "$1.ext"
}

key ca
openssl req -x509 -key ca.key -subj "/CN=Nuncio example CA" -days "$days" -out ca.crt \
  -addext "keyUsage=critical,keyCertSign,cRLSign"
leaf localhost localhost "DNS:localhost,IP:127.0.0.1" serverAuth
leaf shop shop.example "DNS:shop.example,DNS:www.shop.example" serverAuth
leaf wildcard "*.apps.example" "DNS:*.apps.example" serverAuth
leaf client client "URI:spiffe://example/ns/web/sa/client,DNS:client.example" clientAuth
# Nobody needs to issue more of them.
rm -f ca.key ca.srl
