#!/usr/bin/env bash
# Makes one more certificate under the authority of `wanspec certs`: for another worker, or in place of one that expires.
#
#     bash deploy/certificate.sh certs campus-2                             # a worker's: certs/campus-2.pem, certs/campus-2-key.pem
#     bash deploy/certificate.sh certs controller-2 controller.example.org  # a controller's, for the hosts that are dialled

set -euo pipefail
umask 077

days=365
folder=${1:?name the folder of ca.pem and ca-key.pem}
name=${2:?name the certificate}
shift 2

certificate=$folder/$name.pem
key=$folder/$name-key.pem
if [ -e "$certificate" ] || [ -e "$key" ]; then
  echo "$certificate or $key exists and is not overwritten; choose another name" >&2
  exit 2
fi

usage=clientAuth
alternative_names=
if [ $# -gt 0 ]; then
  usage=serverAuth
  for host in "$@" localhost 127.0.0.1 ::1; do
    case $host in
      *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) kind=IP ;;
      *) kind=DNS ;;
    esac
    alternative_names="$alternative_names,$kind:$host"
  done
fi

openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$key" -subj "/CN=$name" |
  openssl x509 -req -days "$days" -CA "$folder/ca.pem" -CAkey "$folder/ca-key.pem" -out "$certificate" -extfile <(
    echo "basicConstraints = critical, CA:FALSE"
    echo "keyUsage = critical, digitalSignature"
    echo "extendedKeyUsage = $usage"
    echo "subjectKeyIdentifier = hash"
    echo "authorityKeyIdentifier = keyid"
    if [ -n "$alternative_names" ]; then
      echo "subjectAltName = ${alternative_names#,}"
    fi
  )
chmod a+r "$certificate"
echo "$certificate"
echo "$key"
