#!/bin/sh
# Makes the certificates of tests/test_tls.py anew, in this folder. They are kept in the
# repository, so that the tests need no openssl; all but one are good until 2099.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f ./*.pem ./*.key

from=20200101000000Z until=20991231235959Z
long_ago="20000101000000Z 20000201000000Z"

cat >"$work/ca.cnf" <<END
[ca]
default_ca = default
[default]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = none
[any]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = supplied
emailAddress = optional
[req]
distinguished_name = empty
[empty]
END
: >"$work/index"

ec_key() {
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

# sign NAME KEY SUBJECT ISSUER EXTENSIONS [FROM UNTIL]; an ISSUER of - signs itself
sign() {
    printf '%b\n' "[ext]\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n$5" >"$work/$1.ext"
    openssl req -new -utf8 -config "$work/ca.cnf" -key "$2" -subj "$3" -multivalue-rdn \
        -out "$work/$1.csr" 2>/dev/null
    issuer="-cert $work/$4.pem -keyfile $work/$4.key"
    [ "$4" = - ] && issuer="-selfsign -keyfile $2"
    # shellcheck disable=SC2086
    openssl ca -batch -notext -preserveDN -utf8 -config "$work/ca.cnf" $issuer -extensions ext \
        -extfile "$work/$1.ext" -startdate "${6:-$from}" -enddate "${7:-$until}" \
        -in "$work/$1.csr" -out "$work/$1.pem" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
}

authority='basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign'
server='basicConstraints=CA:false\nextendedKeyUsage=serverAuth\nsubjectAltName='
client='basicConstraints=CA:false\nextendedKeyUsage=clientAuth'

for name in ca other; do
    ec_key "$work/$name.key"
    sign $name "$work/$name.key" "/CN=$name for tests" - "$authority"
done
ec_key "$work/intermediate.key"
sign intermediate "$work/intermediate.key" "/CN=intermediate for tests" ca "$authority"

for name in server wildcard new; do ec_key $name.key; done
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key 2>/dev/null
ec_key client.key
sign server server.key "/CN=server" ca "${server}DNS:localhost,DNS:server.example,IP:127.0.0.1"
sign wildcard wildcard.key "/CN=wildcard" ca "${server}DNS:*.wild.example"
sign new new.key "/CN=new" ca "${server}DNS:localhost"
sign rsa rsa.key "/CN=rsa.example" ca 'basicConstraints=CA:false'
sign client client.key \
    '/C=DE/O=Tests, Inc./OU=one+CN=#one \\"<;>\+=/emailAddress=a@b.example/CN= Zoë ' \
    intermediate "$client"
sign direct client.key "/CN=direct" ca "$client"
# shellcheck disable=SC2086
sign expired client.key "/CN=expired" ca "$client" $long_ago
sign stranger client.key "/CN=stranger" other "$client"

for name in ca server wildcard new rsa direct expired stranger intermediate; do
    cp "$work/$name.pem" .
done
cat "$work/client.pem" "$work/intermediate.pem" >client.pem
cat server.key server.pem >both.pem
openssl pkcs8 -topk8 -v2 aes-128-cbc -iter 2048 -passout pass:secret -in server.key -out encrypted.key
