"""Stores on this machine that speak the interfaces of S3 and of Google's.

Amazon's is moto, Google's gcp-storage-emulator. They live as long as the tests
do, as clients keep connections; each test has buckets of its own.
"""

import contextlib
import http
from http import server as http_server
import os
import re
import socket
import threading
from unittest import mock
from urllib import parse
import uuid

import fsspec

COMMON = {
    # No search for machines of a cloud that would lend their credentials.
    'AWS_EC2_METADATA_DISABLED': 'true', 'NO_GCE_CHECK': 'true',
    'GCE_METADATA_ROOT': 'localhost:1'}


@contextlib.contextmanager
def s3():
  """`s3://` leads to an empty store, here and in processes begun from here."""
  from moto import server as moto_server
  server = moto_server.ThreadedMotoServer(
      '127.0.0.1', _free_port(), verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  with mock.patch.dict(os.environ, {
      **COMMON, 'AWS_ENDPOINT_URL': f'http://{host}:{port}',
      'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test',
      'AWS_DEFAULT_REGION': 'us-east-1'}):
    yield
  server.stop()


@contextlib.contextmanager
def gs():
  """`gs://` leads to an empty store, here and in processes begun from here.

  The emulator knows nothing of generations, on which locks and TensorStore rely
  ("write if it is still that one"): it is told.
  """
  from gcp_storage_emulator import server as gs_server
  from gcp_storage_emulator.handlers import objects
  handle, alone = gs_server.Router.handle, threading.Lock()
  close = gs_server.Response.close

  def one_at_a_time(*arguments):
    with alone:
      handle(*arguments)

  def generation(storage, bucket, name):
    with contextlib.suppress(objects.NotFound):
      return storage.get_file_obj(bucket, parse.unquote(name))['generation']
    return '0'

  def with_generation(response):
    handler = response._handler
    read = re.search(r'/b/([^/]+)/o/([^?]+)[?].*alt=media', handler.path)
    if read and response.status in (200, 206):
      response['x-goog-generation'] = generation(
          handler.storage, read[1], read[2])
    close(response)

  def checked(upload):
    def if_it_is_still_that(request, response, storage):
      wanted = request.query.get('ifGenerationMatch')
      name = (request.query['name'][0] if 'name' in request.query
              else request.data['meta']['name'])
      if wanted and wanted[0] != generation(
          storage, request.params['bucket_name'], name):
        response.status = http.HTTPStatus.PRECONDITION_FAILED
      else:
        upload(request, response, storage)
    return if_it_is_still_that

  port = _free_port()
  host = f'http://127.0.0.1:{port}'
  with (mock.patch.multiple(
      objects, _media_upload=checked(objects._media_upload),
      _multipart_upload=checked(objects._multipart_upload)),
        mock.patch.object(gs_server.Response, 'close', with_generation),
        mock.patch.object(gs_server.Router, 'handle', one_at_a_time),
        mock.patch.object(gs_server.server, 'HTTPServer', _Server),
        mock.patch.dict(fsspec.config.conf['gcs'], {'token': 'anon'}),
        mock.patch.dict(os.environ, {
            **COMMON, 'STORAGE_EMULATOR_HOST': host,
            'TENSORSTORE_GCS_HTTP_URL': host, 'FSSPEC_GCS_TOKEN': 'anon',
            # gcsfs would ask for kinds of buckets that no emulator has.
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'})):
    server = gs_server.create_server('127.0.0.1', port, in_memory=True)
    server.start()
    yield
    server.stop()


class _Server(http_server.ThreadingHTTPServer):
  """Many connections at once; that a client gives one up is no error."""

  request_queue_size = 100

  def handle_error(self, request, client_address):
    del request, client_address


def new_bucket(scheme: str) -> str:
  name = f'bucket-{uuid.uuid4().hex[:12]}'
  fsspec.filesystem(scheme).mkdir(name)
  return f'{scheme}://{name}'


def _free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]
