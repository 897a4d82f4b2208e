package natsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
)

// UserKey returns the public key of a user whose seed is in a file, and makes the file, with mode 0600, if there is none.
func UserKey(file string) (public string, made bool, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return "", false, err
		}
		seed, err := pair.Seed()
		if err != nil {
			return "", false, err
		}
		if err := WriteSecret(file, append(seed, '\n')); err != nil {
			return "", false, err
		}
		public, err = pair.PublicKey()
		return public, true, err
	}
	if err != nil {
		return "", false, err
	}
	pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(text))))
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", file, err)
	}
	public, err = pair.PublicKey()
	if err == nil && !nkeys.IsValidPublicUserKey(public) {
		err = fmt.Errorf("%s: not the seed of a user", file)
	}
	return public, false, err
}

// WriteSecret writes a file that only its owner may read. A file that exists keeps its place until the new one is whole.
func WriteSecret(file string, content []byte) error { return replace(file, content, 0o600) }

// Write writes a file that everybody may read.
func Write(file string, content []byte) error { return replace(file, content, 0o644) }

func replace(file string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // an error if it was renamed
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// certificateLife is how long certificates are valid that Authority makes.
const certificateLife = 10 * 365 * 24 * time.Hour

// Authority is a certificate authority of an installation's own.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// OpenAuthority reads the authority from ca.pem and ca-key.pem in a directory, and makes them if they do not exist.
func OpenAuthority(dir string) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	certPEM, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return newAuthority(certFile, keyFile)
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("the key of %s: %w", certFile, err)
	}
	a := new(Authority)
	if a.cert, err = parsePEM(certPEM, x509.ParseCertificate); err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if a.key, err = parsePEM(keyPEM, x509.ParseECPrivateKey); err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	return a, nil
}

func parsePEM[T any](text []byte, parse func([]byte) (T, error)) (v T, err error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return v, errors.New("no PEM file")
	}
	return parse(block.Bytes)
}

func newAuthority(certFile, keyFile string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := newTemplate("Pulley NATS CA")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{cert, key}, writePair(certFile, keyFile, der, key)
}

// Issue makes a certificate of a server for host names and addresses, which also identifies it as a client of other members
// of its cluster.
func (a *Authority) Issue(certFile, keyFile, name string, hosts []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := newTemplate(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	return writePair(certFile, keyFile, der, key)
}

func newTemplate(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
	}
}

func writePair(certFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := WriteSecret(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})); err != nil {
		return err
	}
	return Write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// IsFor reports whether a certificate exists that is valid for exactly these hosts, for at least another month.
func IsFor(certFile string, hosts []string) bool {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return false
	}
	cert, err := parsePEM(text, x509.ParseCertificate)
	if err != nil || time.Until(cert.NotAfter) < 30*24*time.Hour {
		return false
	}
	has := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		has = append(has, ip.String())
	}
	slices.Sort(has)
	return slices.Equal(has, hosts)
}
